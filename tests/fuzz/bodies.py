"""Bodies: valid ones broken at some place, and bytes that are hardly a body; queries and paths too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from fuzz.case import JSON, Case
from fuzz.hazards import Hazards
from fuzz.json_text import Pairs, changed, encode, places, without
from fuzz.requests import ROUTES
from fuzz.session import Plan, Session, sends
from fuzz.values import junk, large, numbers, texts

# A body whose limits have been lost to a mutation would generate up to the end of the context.
LIMITS = {"max_tokens", "max_output_tokens"}
CONTENT_TYPES = [
    "application/json",
    "application/json; charset=utf-16",
    "application/json;charset=nonsense",
    "application/vnd.api+json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "",
    "/",
    "a" * 5000,
]
HEADERS = [
    ("X-Request-Id", "é" * 300),
    ("X-Request-Id", ""),
    ("Authorization", "Bearer"),
    ("Authorization", "Basic Og=="),
    ("Content-Encoding", "gzip"),
    ("Accept", "text/html"),
    ("Accept-Encoding", "gzip, br"),
    ("Origin", "null"),
    ("Host", "é"),
    ("Cookie", "a" * 20_000),
    ("Range", "bytes=0-1"),
    ("Expect", "100-continue"),
    ("X-HTTP-Method-Override", "DELETE"),
]

Draw = Callable[[st.DataObject, Session, Hazards], Plan]


def draw(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    kinds: list[Draw] = [_mutated, _mutated, _mutated, _extreme, _bytes, _paths]
    if hazards.has("configure"):
        kinds.append(_configured)
    return data.draw(st.sampled_from(kinds))(data, session, hazards)


def _valid(data: st.DataObject, session: Session) -> tuple[str, dict[str, Any]]:
    path = data.draw(st.sampled_from(sorted(ROUTES)))
    return path, data.draw(ROUTES[path](session.model))


def _mutated(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    path, value = _valid(data, session)
    for _ in range(data.draw(st.integers(1, 2))):
        value = data.draw(_mutations(value, hazards, session.known.get(f"POST {path}", frozenset())))
    return sends(Case.of("bodies: mutated", path, value))


def _mutations(value: Any, hazards: Hazards, known: frozenset[str]) -> st.SearchStrategy[Any]:
    if not isinstance(value, dict):
        return st.just(value)
    inside = [place for place in places(value) if place and not LIMITS & {*map(str, place)}]
    somewhere = st.sampled_from(inside) if inside else st.just(("x",))
    wrong = junk(hazards)
    keys = st.one_of(texts(hazards).map(lambda text: text[:50_000]), st.sampled_from(sorted(known) or ["a"]))
    return st.one_of(
        st.builds(lambda place, new: changed(value, place, lambda _: new), somewhere, wrong),
        somewhere.map(lambda place: without(value, place)),
        somewhere.map(lambda place: changed(value, place, lambda _: None)),
        st.builds(lambda key, new: {**value, key: new}, keys.filter(lambda key: key not in LIMITS), wrong),
        st.builds(lambda place: changed(value, place, lambda old: [old]), somewhere),
        st.builds(lambda place: changed(value, place, lambda old: {"type": "text", "value": old}), somewhere),
        st.builds(lambda key, new: Pairs([*value.items(), (key, new)]), st.sampled_from(sorted(value)), wrong),
        st.one_of(st.none(), st.just([value]), st.just([]), st.just("text"), *large(hazards)),
    )


def _extreme(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    """Numbers at and beyond the ends of what a field may be, several at a time."""
    path, value = _valid(data, session)
    fields = sorted(
        {
            *("temperature top_p top_k min_p seed presence_penalty frequency_penalty repetition_penalty".split()),
            *("min_tokens n best_of logprobs top_logprobs max_tokens thinking_budget stop_token_ids".split()),
        }
        & session.known.get(f"POST {path}", frozenset())
    )
    changes = st.dictionaries(st.sampled_from(fields or ["prompt"]), numbers(hazards), min_size=1, max_size=3)
    value = {**value, **data.draw(changes)}
    return sends(Case.of("bodies: extreme numbers", path, value))


def _bytes(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    """The bytes of a body, cut, replaced, of another encoding or called something else."""
    path, value = _valid(data, session)
    whole = encode(value).encode()
    place = data.draw(st.integers(0, len(whole)))
    kinds = {
        "truncated": whole[:place],
        "BOM": b"\xef\xbb\xbf" + whole,
        "UTF-16": whole.decode().encode("utf-16"),
        "two": whole + whole,
        "NUL": whole + b"\x00",
        "comment": b"/**/" + whole,
        "single quotes": whole.replace(b'"', b"'"),
        "trailing comma": whole[:-1] + b",}",
        "empty": b"",
        "noise": data.draw(st.binary(max_size=40)),
        "control character": whole.replace(b"a", b"\x01", 1),
        "content type": whole,
        "header": whole,
        "17 MiB": b'{"model": "' + b"a" * (17 * 2**20) + b'"}',
    }
    if hazards.has("surrogates"):
        kinds["invalid UTF-8"] = whole[:place] + b"\xff\xfe\xc3" + whole[place:]
        kinds["surrogate in UTF-8"] = whole.replace(b"a", b"\xed\xa0\x80", 1)
    kind = data.draw(st.sampled_from(sorted(kinds)))
    headers: tuple[tuple[str, str], ...] = JSON
    if kind == "content type":
        headers = (("Content-Type", data.draw(st.sampled_from(CONTENT_TYPES))),)
    elif kind == "header":
        headers = (*JSON, data.draw(st.sampled_from(HEADERS)))
    return sends(Case(f"bodies: {kind}", path, kinds[kind], headers=headers))


def _paths(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    name = data.draw(st.one_of(texts(hazards).map(lambda text: text[:3000]), st.sampled_from([".", "..", "//", "?"])))
    odd = quote(name.encode("utf-8", "surrogatepass"), safe="") or "%"
    method = data.draw(st.sampled_from(["GET", "DELETE", "POST", "PUT", "HEAD", "OPTIONS", "PATCH", "BREW"]))
    pattern = data.draw(st.sampled_from(["/v1/responses/{}", "/v1/models/{}", "/{}", "/v1/{}", "/health?{}", "/docs"]))
    path = pattern.format(odd)
    if data.draw(st.booleans()):
        path = data.draw(
            st.sampled_from(["/v1/responses/%ff%fe", "/v1/models/%00", "/v1/models/%ed%a0%80", "/v1/models/"])
        )
    return sends(Case("bodies: paths", path, method=method, headers=()))


def _configured(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    """Settings by query; the ones that began are put back at once."""
    words = [
        "",
        "auto",
        "-1",
        "0",
        "1",
        "2",
        "7",
        "33",
        "1e3",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "true",
        "off",
        "[1]",
        "0x10",
        "١",
    ]
    values = st.one_of(
        st.sampled_from(words), *hazards.only(digits=st.just("9" * 5000), extreme_numbers=st.just("9" * 25))
    )
    names = [*session.settings, "max_batch", "", "__class__"]
    drawn = data.draw(st.lists(st.tuples(st.sampled_from(names), values), max_size=3))
    # A queue without room refuses the neighbours rightly.
    query = "&".join(f"{quote(name)}={quote(value)}" for name, value in drawn if name != "max_queue" or len(value) != 1)
    case = Case("bodies: configure", f"/v1/configure?{query}", headers=())

    def carried_out(session: Session) -> None:
        session.send(case)
        session.restore_settings()

    return carried_out

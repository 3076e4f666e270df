"""Whether two tokenizers are the same."""

from __future__ import annotations

from collections.abc import Mapping


def difference(target: Mapping[str, int], draft: Mapping[str, int]) -> str | None:
    """In what the draft's vocabulary (token to id) is not the target's; None if every id in both means the same token.

    A padded vocabulary is no difference: ids without a token are not compared.
    """
    by_id = {index: token for token, index in target.items()}
    differing = sorted(
        (index, by_id[index], token) for token, index in draft.items() if by_id.get(index, token) != token
    )
    missing = sorted(set(draft.values()) - set(by_id))
    if differing:
        listed = ", ".join(f"{index} ({own!r} and {other!r})" for index, own, other in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return (
            f"{len(differing)} of {len(draft)} ids stand for different tokens in the target and in the draft: "
            f"{listed}{more}"
        )
    # A few added tokens do no harm; a hundredth of the vocabulary is another tokenizer.
    if len(missing) > len(draft) // 100 + 64:
        return f"it has {len(missing)} ids that the target has not, {missing[0]} to {missing[-1]}"
    return None

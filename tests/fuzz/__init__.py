"""Hostile requests to a real server process, watched from outside.

`pytest tests/fuzz` takes about two minutes and draws the same requests each time; the long run is
`pytest tests/fuzz -s --fuzz-minutes 60 --fuzz-seed random`. `--fuzz-without NAME,NAME` leaves out kinds of input
(`hazards.py`), to look behind what they break.
"""

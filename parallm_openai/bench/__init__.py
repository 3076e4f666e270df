"""The load generator, and the random-weight models that make its measurements repeatable offline."""

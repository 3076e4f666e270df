"""How models write their thoughts, and how they are split from their answers."""

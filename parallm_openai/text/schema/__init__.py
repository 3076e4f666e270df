"""JSON schemas of clients, put in a form that llguidance enforces as they mean it."""

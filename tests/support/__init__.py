"""Helpers that several test modules share: tiny models, servers under test, chat templates."""

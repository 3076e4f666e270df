"""Grammars over tokens: written, compiled within bounds, and followed while a sequence is generated."""

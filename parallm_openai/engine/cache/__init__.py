"""What rows have computed: keys and values, recurrent state, and prefixes stored for later rows."""

"""OpenTelemetry traces, if the environment asks for them (docs/metrics.md)."""

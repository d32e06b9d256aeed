"""OpenTelemetry, as server and workers share it. Everybody may import it; it imports nothing of ours."""

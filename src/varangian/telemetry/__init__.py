"""OpenTelemetry, as server and workers share it. Everybody may import it; of ours it imports how events are logged."""

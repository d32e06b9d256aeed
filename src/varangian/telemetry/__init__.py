"""OpenTelemetry, as server and workers share it; of ours it imports the form of log lines."""

"""What server and workers share of OpenTelemetry. Everybody may import it; it imports nothing of ours."""

"""OpenTelemetry traces and the heartbeat file, in one form for servers and workers.

Of ours it imports the form of log lines.
"""

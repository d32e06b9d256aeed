"""What a server and a worker report in one way: traces by OpenTelemetry, and the heartbeat file.

Of ours it imports the form of log lines.
"""

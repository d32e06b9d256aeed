"""One YAML for server and workers; the only place that knows every registry.

`load` reads a file and overrides into a frozen `RunConfig`, or raises ConfigError with every problem at once.
"""

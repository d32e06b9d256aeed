"""The server of a program: a module, an optimizer and an evaluation of the user's own, served to workers.

`server` is what a program makes, `running` a server that works in a thread, `own_module` the model as its
run asks for it, `settings` how arguments become the settings of a run, and `round_callback` the thread that
hands over records. `varangian.Server` is here; nothing else imports this room.
"""

from varangian.serving.running import Running
from varangian.serving.server import Server

__all__ = ["Running", "Server"]

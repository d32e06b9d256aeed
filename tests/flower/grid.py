"""A grid of Flower without a network: clients are functions, and messages go through Flower's own bytes."""

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message import arraychunk  # noqa: F401 - known to what reads messages
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


def identified():
    """What the runtime of Flower sets before a ServerApp runs."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class InProcess(Grid):
    """`reply(node, message)` is the reply of a node, None for none."""

    def __init__(self, nodes, reply):
        identified()
        self.nodes, self.reply = [*nodes], reply

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return self.nodes

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        replies = [self.reply(message.metadata.dst_node_id, message) for message in messages]
        return [reply for reply in replies if reply is not None]


def content(arrays, metrics):
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord(metrics),
        }
    )

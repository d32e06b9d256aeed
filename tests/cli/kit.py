"""A stand-in for a server, for commands that ask one how its run is going."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import grpc

from varangian import __version__
from varangian.protos import ps_pb2


@contextlib.contextmanager
def answering(credentials, software=__version__, data_port=0, refusals="", **more):
    """A server that says how its run is going to whoever may connect."""
    status = ps_pb2.StatusReply(round=2, rounds=9, present=1, workers=3, software=software, **more)
    status.data_port, status.refusals = data_port, refusals
    reply = status.SerializeToString()
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: reply)
    service = ps_pb2.DESCRIPTOR.services_by_name["ParameterServer"].full_name
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Status": handler}),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()

"""What gRPC logs in a program with several event loops."""

import asyncio
import logging

from varangian.protos.network.grpc_log import install_log_filter


def test_answers_for_a_loop_that_is_closed_are_no_errors(caplog):
    install_log_filter()
    loop = asyncio.new_event_loop()

    def report(message, error):
        loop.call_exception_handler({"message": message, "exception": error})

    poller = "Exception in callback PollerCompletionQueue._handle_events(<_UnixSelectorEventLoop>)()"
    report(poller, RuntimeError("Event loop is closed"))
    report(poller, BlockingIOError(11, "Resource temporarily unavailable"))
    assert caplog.text == ""
    report(poller, RuntimeError("something else"))
    report("Exception in callback mine()", RuntimeError("Event loop is closed"))
    assert len(caplog.records) == 2
    loop.close()
    assert all(record.levelno == logging.ERROR for record in caplog.records)

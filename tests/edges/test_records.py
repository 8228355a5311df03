from __future__ import annotations

import json

import pytest
from edges.grid import InProcessGrid, error_reply
from flwr.app import ConfigRecord, Message, RecordDict

from client_app.app import app as client
from client_app.records import read_request, reply_content
from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.fingerprint import fingerprint
from fednas_core.base.settings import read
from fednas_core.exchange.wire import Packet
from server_app.exchange import exchange
from server_app.records import Request, read_reply, reason, request


@pytest.fixture
def message(config: RunConfig) -> Message:
    InProcessGrid(client, {})
    return request(Request(Packet('{"a": 1}', {"float32": b"1234", "float16": b"12"}), config, 3), 77, "train", 9.0)


def test_a_request_is_read_as_it_was_made(message: Message, config: RunConfig) -> None:
    found = read_request(message.content)
    assert found.packet == Packet('{"a": 1}', {"float32": b"1234", "float16": b"12"})
    assert read(json.loads(found.settings)) == config
    assert (found.index, found.code) == (3, fingerprint().digest)
    assert (message.metadata.dst_node_id, message.metadata.message_type, message.metadata.ttl) == (77, "train", 9.0)


@pytest.mark.parametrize("buffers", [{}, {"float32": b"12345678"}])
def test_a_reply_is_read_as_it_was_made(message: Message, buffers: dict[str, bytes]) -> None:
    packet = Packet("{}", buffers)
    assert read_reply(Message(reply_content(packet), reply_to=message)) == packet


def test_a_reply_of_other_records_is_refused(message: Message) -> None:
    content = RecordDict({"fednas": ConfigRecord({"other": "x"})})
    with pytest.raises(ReplyError, match="no fednas record"):
        read_reply(Message(content, reply_to=message))


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("Traceback:\n  File x\nKeyError: 'y'\n", "KeyError: 'y'"),
        ("<class 'X'>:<'\\nException ClientAppException occurred. Message: no room'>", "no room"),
        ("<class 'fednas_core.base.errors.DataError'>:<'no room'>", "DataError: no room"),
        ("", "Flower error 2"),
        ("x" * 1000, "x" * 297 + "..."),
    ],
)
def test_a_reason_is_one_line(message: Message, told: str, shown: str) -> None:
    assert reason(error_reply(message, told)) == shown


def test_what_cannot_be_sent_has_no_reply(message: Message) -> None:
    messages = iter([("key", message)])
    assert list(exchange(InProcessGrid(client, {}), lambda: messages, 1.0)) == [("key", None)]

"""Flower's grid within this process: pushing calls the ClientApp, pulling returns its reply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Spoil = Callable[[Message, Message], list[Message]]


class InProcessGrid(Grid):
    """Nodes by id with their node configurations; `spoil` may drop, replace or double each (message, reply)."""

    def __init__(self, app: ClientApp, nodes: Mapping[int, Mapping[str, object]], spoil: Spoil | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.nodes = dict(nodes)
        self.pushed: list[Message] = []
        self.spoil: Spoil = spoil or (lambda message, reply: [reply])
        self._app = app
        self._replies: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self.nodes:
                continue
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self.pushed.append(message)
            self._replies += self.spoil(message, self._reply(message))
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        ready = [reply for reply in self._replies if reply.metadata.reply_to_message_id in wanted]
        self._replies = [reply for reply in self._replies if reply not in ready]
        return ready

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(1, node, dict(self.nodes[node]), RecordDict(), {})
        try:
            return self._app(message, context)
        except Exception as error:
            return error_reply(message, f"<class 'ClientAppException'>:<'\\nMessage: {error}'>")

    def set_run(self, run: object) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *arguments: object, **named: object) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError


def error_reply(message: Message, reason: str, code: int = 2) -> Message:
    """An error as Flower makes it."""
    return Message(Error(code, reason), reply_to=message)


def simulated(count: int) -> dict[int, dict[str, object]]:
    """Nodes as a simulation numbers them, their ids in no order."""
    return {7919 * (index + 3) % 1009: {"partition-id": index, "num-partitions": count} for index in range(count)}

"""The fair queue: no slot is lost, and each goes to the right request, in any order of events."""

from collections import Counter, defaultdict
from math import inf

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ape_cerebras.limits.fair_queue import FairQueue, Stage, Ticket

NAMES = ("alice", "bob", "carol", None)


class Wake(anyio.Event):
    """Records that a waiting ticket is decided."""

    def __new__(cls, ticket: Ticket, woken: list[Ticket]) -> "Wake":
        return object.__new__(cls)

    def __init__(self, ticket: Ticket, woken: list[Ticket]) -> None:
        self._ticket, self._woken = ticket, woken

    def set(self) -> None:
        self._woken.append(self._ticket)


def stages(*tickets: Ticket) -> list[Stage]:
    return [ticket.stage for ticket in tickets]


def test_a_request_takes_a_free_slot_or_waits() -> None:
    queue = FairQueue(2, 10)
    first, second, third = (queue.join("alice", 0.0) for _ in range(3))
    assert stages(first, second, third) == [Stage.ADMITTED, Stage.ADMITTED, Stage.WAITING]
    assert (queue.in_use, queue.waiting) == (2, 1)
    queue.leave(second, 1.0)
    assert stages(first, second, third) == [Stage.ADMITTED, Stage.LEFT, Stage.ADMITTED]
    assert (queue.in_use, queue.waiting) == (2, 0)


def test_leaving_twice_frees_one_slot() -> None:
    queue = FairQueue(1, 10)
    ticket = queue.join("alice", 0.0)
    for _ in range(3):
        queue.leave(ticket, 0.0)
    assert queue.in_use == 0
    assert stages(queue.join("alice", 0.0), queue.join("alice", 0.0))[1] is Stage.WAITING


def test_clients_alternate_however_many_requests_one_has() -> None:
    queue = FairQueue(1, 100)
    holder = queue.join("alice", 0.0)
    waiting = [queue.join(name, 0.0) for name in ("alice",) * 5 + ("bob",) * 2 + ("carol",)]
    order = []
    while waiting:
        queue.leave(holder, 0.0)
        [holder] = [ticket for ticket in waiting if ticket.stage is Stage.ADMITTED]
        waiting.remove(holder)
        order.append(holder.name)
    assert order == ["alice", "bob", "carol", "alice", "bob", "alice", "alice", "alice"]


def test_a_ticket_that_left_the_queue_is_skipped() -> None:
    queue = FairQueue(1, 10)
    holder, first, second = (queue.join("alice", 0.0) for _ in range(3))
    queue.leave(first, 0.0)
    assert queue.waiting == 1
    queue.leave(holder, 0.0)
    assert stages(first, second) == [Stage.LEFT, Stage.ADMITTED]


def test_a_client_at_its_own_limit_holds_up_no_other() -> None:
    queue = FairQueue(3, 10)
    carols = [queue.join("carol", 0.0, max_slots=1) for _ in range(3)]
    bobs = [queue.join("bob", 0.0) for _ in range(3)]
    assert stages(*carols) == [Stage.ADMITTED, Stage.WAITING, Stage.WAITING]
    assert stages(*bobs) == [Stage.ADMITTED, Stage.ADMITTED, Stage.WAITING]
    queue.leave(bobs[0], 0.0)
    assert (carols[1].stage, bobs[2].stage) == (Stage.WAITING, Stage.ADMITTED)
    queue.leave(carols[0], 0.0)
    assert stages(*carols[1:]) == [Stage.ADMITTED, Stage.WAITING]


def test_a_clients_own_limit_can_change_while_requests_wait() -> None:
    queue = FairQueue(float("inf"), 10)
    first, second, third = (queue.join("carol", 0.0, max_slots=1) for _ in range(3))
    fourth = queue.join("carol", 0.0, max_slots=3)
    assert stages(first, second, third, fourth) == [*[Stage.ADMITTED] * 3, Stage.WAITING]
    lowered = queue.join("carol", 0.0, max_slots=1)
    queue.leave(first, 0.0)
    queue.leave(second, 0.0)
    assert stages(third, fourth, lowered) == [Stage.ADMITTED, Stage.WAITING, Stage.WAITING]


def test_a_client_with_its_own_limit_has_its_own_estimate() -> None:
    queue = FairQueue(10, 10)
    tickets = [queue.join("carol", 0.0, max_slots=1) for _ in range(3)]
    queue.leave(tickets[0], 4.0)
    assert queue.estimated_wait("carol", 4.0) == 8.0
    assert queue.estimated_wait("bob", 4.0) == 0.0


def test_a_full_queue_refuses_the_newest_of_the_longest_share() -> None:
    queue = FairQueue(1, 3)
    queue.join("alice", 0.0)
    woken: list[Ticket] = []
    greedy = [queue.join("alice", 0.0) for _ in range(3)]
    for ticket in greedy:
        ticket.decided = Wake(ticket, woken)
    assert queue.join("alice", 0.0).stage is Stage.REFUSED
    modest = queue.join("bob", 0.0)
    assert stages(*greedy, modest) == [
        *(Stage.WAITING, Stage.WAITING, Stage.REFUSED, Stage.WAITING),
    ]
    assert woken == [greedy[2]]
    assert queue.waiting == 3


def test_a_queue_of_length_0_refuses_at_once() -> None:
    queue = FairQueue(1, 0)
    assert stages(queue.join("a", 0.0), queue.join("b", 0.0)) == [Stage.ADMITTED, Stage.REFUSED]
    assert queue.waiting == 0


def test_the_estimate_counts_only_time_with_all_slots_in_use() -> None:
    queue = FairQueue(1, 10)
    assert queue.estimated_wait("alice", 0.0) == 0.0
    tickets = [queue.join("alice", 100.0) for _ in range(5)]
    assert queue.estimated_wait("alice", 100.0) == 0.0  # nothing is known yet
    assert (
        queue.estimated_wait("alice", 103.0) == 15.0
    )  # one may be released any moment: 5 are waited for
    queue.leave(tickets[0], 104.0)
    assert queue.estimated_wait("alice", 104.0) == 16.0  # 3 wait, so that the next is the fourth
    queue.leave(tickets[1], 106.0)
    assert queue.estimated_wait("alice", 106.0) == 9.0
    assert queue.estimated_wait("alice", 108.0) == 12.0  # a slot is late: the estimate grows
    for ticket in tickets[2:]:
        queue.leave(ticket, 110.0)
    assert queue.estimated_wait("alice", 1000.0) == 0.0
    queue.join("alice", 2000.0)
    assert queue.estimated_wait("alice", 2003.0) == 3.0  # the time before the pause does not count


def test_the_estimate_follows_the_latest_slots() -> None:
    queue = FairQueue(1, 1000)
    tickets = [queue.join("alice", 0.0) for _ in range(200)]
    for number, ticket in enumerate(tickets[:150]):
        queue.leave(ticket, 10.0 * number if number < 100 else 990.0 + (number - 99))
    assert queue.estimated_wait("alice", 1040.0) == pytest.approx(queue.waiting + 1, rel=0.01)


class QueueMachine(RuleBasedStateMachine):
    """Random joins and leaves, beside a model that keeps whole lists. There are three slots, at
    most four tickets wait, and one name has its own limit."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(3, 4)
        self.queued: dict[str | None, list[Ticket]] = defaultdict(list)
        self.rotation: list[str | None] = []
        self.held: list[Ticket] = []
        self.woken: list[Ticket] = []

    def most_of(self, name: str | None) -> float:
        return 1 if name == "carol" else inf

    def may_have_one(self, name: str | None) -> bool:
        return sum(ticket.name == name for ticket in self.held) < self.most_of(name)

    def admit(self) -> None:
        while len(self.held) < 3 and (free := list(filter(self.may_have_one, self.rotation))):
            self.rotation.remove(free[0])
            self.held.append(self.queued[free[0]].pop(0))
            if self.queued[free[0]]:
                self.rotation.append(free[0])

    @rule(name=st.sampled_from(NAMES))
    def join(self, name: str | None) -> None:
        ticket = self.queue.join(name, 0.0, self.most_of(name))
        ticket.decided = Wake(ticket, self.woken)
        self.queued[name].append(ticket)
        if name not in self.rotation:
            self.rotation.append(name)
        self.admit()
        if sum(map(len, self.queued.values())) > 4:
            longest = max(len(tickets) for tickets in self.queued.values())
            own = len(self.queued[name]) == longest
            victims = (
                [ticket]
                if own
                else [tickets[-1] for tickets in self.queued.values() if len(tickets) == longest]
            )
            [refused] = [each for each in victims if each.stage is Stage.REFUSED]
            self.queued[refused.name].remove(refused)
            if not self.queued[refused.name]:
                self.rotation.remove(refused.name)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.held))
        self.held.remove(ticket)
        self.queue.leave(ticket, 0.0)
        self.admit()

    @precondition(lambda self: self.rotation)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiting = [ticket for tickets in self.queued.values() for ticket in tickets]
        ticket = data.draw(st.sampled_from(waiting))
        self.queued[ticket.name].remove(ticket)
        if not self.queued[ticket.name]:
            self.rotation.remove(ticket.name)
        self.queue.leave(ticket, 0.0)

    @invariant()
    def all_are_where_they_should_be(self) -> None:
        waiting = [ticket for tickets in self.queued.values() for ticket in tickets]
        assert self.queue.in_use == len(self.held) <= 3
        assert self.queue.waiting == len(waiting) <= 4
        assert len(self.held) == 3 or not any(map(self.may_have_one, self.rotation))
        assert sum(ticket.name == "carol" for ticket in self.held) <= 1
        assert all(ticket.stage is Stage.ADMITTED for ticket in self.held)
        assert all(ticket.stage is Stage.WAITING for ticket in waiting)
        assert not Counter(self.woken) - Counter(set(self.woken))  # nobody is woken twice


TestQueueMachine = QueueMachine.TestCase


@given(st.lists(st.sampled_from(NAMES), max_size=60), st.integers(1, 5))
def test_no_client_is_served_twice_before_another_waiting_one(
    names: list[str | None], slots: int
) -> None:
    queue = FairQueue(slots, 100)
    held = [queue.join("first", 0.0) for _ in range(slots)]
    waiting = [queue.join(name, 0.0) for name in names]
    since: dict[str | None, Counter[str | None]] = {name: Counter() for name in names}
    while waiting:
        queue.leave(held.pop(0), 0.0)
        [next_one] = [ticket for ticket in waiting if ticket.stage is Stage.ADMITTED]
        own = [ticket for ticket in waiting if ticket.name == next_one.name]
        assert own[0] is next_one  # first come, first served
        waiting.remove(next_one)
        held.append(next_one)
        for name in {ticket.name for ticket in waiting} - {next_one.name}:
            since[name][next_one.name] += 1
            assert since[name][next_one.name] <= 1
        since[next_one.name].clear()

"""One request and all that came of it: its record, and every value derived from that.

Nothing is derived anywhere else, so that a log line and a metric can never disagree. Derived
durations are seconds rounded to the microsecond, and are None where they do not apply.

They are asked for when the exchange has ended, and worked out once then: log and metrics ask for
each of them, and they for one another.
"""

from .exchange import Record
from .once import once
from .outcomes import OUTCOMES, Outcome, outcome_of_status

__all__ = ("Exchange",)


def _span(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round(end - begin, 6)


class Exchange(Record):
    """See the module's docstring."""

    @once
    def is_chat(self) -> bool:
        return self.route == "/v1/chat/completions"

    @once
    def outcome(self) -> str:
        """How the exchange ended: a key of ``outcomes.OUTCOMES``.

        An error event ends an answer, whatever comes after it: the SDKs hang up on reading one.
        """
        if self.stream_failed:
            return "upstream_stream_error"
        if self.error is not None:
            return self.error.outcome
        if self.is_chat and self.upstream_status is not None:
            return outcome_of_status(self.upstream_status)
        return "completed"

    @once
    def error_code(self) -> str | None:
        """Our own code for what went wrong; None where nothing did."""
        if self.error is not None and not self.stream_failed:
            return self.error.code
        return self.outcome if self.traits.failed else None

    @once
    def method(self) -> str | None:
        return self.request.method if self.request else None

    @once
    def renamed_model(self) -> str | None:
        """What the client asked for, where an alias made another model of it."""
        return self.requested_model if self.requested_model != self.model else None

    @once
    def is_clients_retry(self) -> bool:
        """Whether its client makes it again, as the SDKs do of themselves."""
        count = self.request.header(b"x-stainless-retry-count") if self.request else None
        return count is not None and count.isdigit() and count.strip(b"0") != b""

    @once
    def traits(self) -> Outcome:
        return OUTCOMES[self.outcome]

    @once
    def total_time_seconds(self) -> float:
        """From the request's completion; from its first byte if it never was complete."""
        began_at = self.started_at if self.received_at is None else self.received_at
        return round(self.finished_at - began_at, 6)

    @once
    def wait_seconds(self) -> float | None:
        """Waiting for its turn: to be admitted, and to have a connection. None where both came at
        once."""
        waits = (self.admission_wait_seconds, self.pool_wait_seconds)
        known = [each for each in waits if each is not None]
        return round(sum(known), 6) if known else None

    @once
    def overhead_seconds(self) -> float | None:
        """Time that was spent waiting neither for upstream nor for the client, nor for a turn; None
        where the request never was complete, for most of that time the client was waited for."""
        if self.received_at is None:
            return None
        waited = self.upstream_wait_seconds + self.client_blocked_seconds
        waited += self.admission_wait_seconds or 0.0
        return round(max(0.0, self.total_time_seconds - waited), 6)

    @once
    def ttfb_seconds(self) -> float | None:
        return _span(self.sent_at, self.head_at)

    @once
    def ttft_source(self) -> str | None:
        """``measured`` where a token was seen to arrive and to go on to the client, ``derived``
        from Cerebras's own account of a plain reply, None where there is neither."""
        if self._token_passed_at is not None:
            return "measured"
        return "derived" if self._derived_first_token_at is not None else None

    @once
    def _derived_first_token_at(self) -> float | None:
        """A plain reply comes all at once; its tokens were made in the ``completion_time`` that
        ended when it was sent."""
        if self.stream or self.last_body_at is None or self.sent_at is None:
            return None
        if self.first_token_at is not None or self.stream_failed:
            return None
        if self.time_info is None or self.time_info.completion is None or self.error is not None:
            return None
        if self.usage is not None and not self.usage.completion_tokens:
            return None  # there was no token
        derived = self.last_body_at - self.time_info.completion
        return derived if derived >= self.sent_at else None

    @once
    def _token_passed_at(self) -> float | None:
        """When the client had the first token that was seen to arrive; None where it never did, and
        no TTFT can be told."""
        if self.first_token_sent_at is not None:
            return self.first_token_sent_at
        return self._as_if_passed_on(self.first_token_at)

    def _as_if_passed_on(self, arrived_at: float | None) -> float | None:
        """When the client would have had a token of a plain reply that it got whole: what the
        proxy took to pass the reply on it would have taken for the token as well."""
        if self.stream or self.error is not None or self.stream_failed:
            return None
        if arrived_at is None or self.last_body_at is None:
            return None
        return arrived_at + self.finished_at - self.last_body_at

    @once
    def ttft_seconds(self) -> float | None:
        """Request complete → first token written to the client: what the agent felt."""
        passed_at = self._token_passed_at
        if passed_at is None:
            passed_at = self._as_if_passed_on(self._derived_first_token_at)
        return _span(self.received_at, passed_at)

    @once
    def upstream_ttft_seconds(self) -> float | None:
        """Request written upstream → first token arrived: what Cerebras and the network did."""
        if self._token_passed_at is not None:
            return _span(self.sent_at, self.first_token_at)
        return _span(self.sent_at, self._derived_first_token_at)

    @once
    def proxy_ttft_seconds(self) -> float | None:
        """What this proxy added; the difference of the two, so that they always add up."""
        return _span(self.upstream_ttft_seconds, self.ttft_seconds)

    @once
    def proxy_own_seconds(self) -> float | None:
        """What is left of that beside tries that failed, waiting for its turn and making a
        connection: the proxy's work, and the time that its event loop was busy with others."""
        if self.proxy_ttft_seconds is None:
            return None
        making = (self.wait_seconds, self.connect_seconds, self.tls_seconds)
        elsewhere = (self.retry_seconds, *making)
        return round(self.proxy_ttft_seconds - sum(each or 0.0 for each in elsewhere), 6)

    @once
    def stamp(self) -> str | None:
        """``kernel`` where the kernel told of every arrival, on both sides, when it was; ``read``
        where one or more were only known by their reading."""
        if self.received_at is None:
            return None
        return (
            "kernel"
            if self.request_timestamped and self.response_timestamped is not False
            else "read"
        )

    @once
    def ttfo_seconds(self) -> float | None:
        """Like TTFT, for the first token that is not reasoning; of models that reason."""
        if not self.has_reasoning:
            return None
        passed_at = self.first_output_sent_at
        if passed_at is None:
            passed_at = self._as_if_passed_on(self.first_output_at)
        return _span(self.received_at, passed_at)

    @once
    def generation_seconds(self) -> float | None:
        """First token → last token. None where it may have been a slow client that upstream had to
        wait for."""
        if self.client_blocked_seconds and self.response_backlogged:
            return None
        return _span(self.first_token_at, self.last_token_at)

    @once
    def tpot_seconds(self) -> float | None:
        """Time per output token after the first; once for a stream, from two tokens on. Where a
        request asked for several choices, the tokens of all of them count."""
        if not self.generation_seconds or self.usage is None or self.usage.completion_tokens < 2:
            return None
        return round(self.generation_seconds / (self.usage.completion_tokens - 1), 6)

    @once
    def tokens_per_second(self) -> float | None:
        if not self.generation_seconds or self.usage is None or not self.usage.completion_tokens:
            return None
        return round(self.usage.completion_tokens / self.generation_seconds, 3)

    @once
    def tokens_per_event(self) -> float | None:
        """Upstream puts several tokens into an event, so that time between events is not time
        between tokens."""
        tokens = self.usage.completion_tokens if self.usage is not None else 0
        return round(tokens / self.token_events, 3) if tokens and self.token_events else None

    @once
    def events_per_read(self) -> float | None:
        """Events come several at once as well: the network joins them, or a busy loop does."""
        return round(self.token_events / self.token_reads, 3) if self.token_reads else None

    @once
    def queue_seconds(self) -> float | None:
        return self._phase("queue")

    @once
    def prompt_seconds(self) -> float | None:
        return self._phase("prompt")

    @once
    def completion_seconds(self) -> float | None:
        return self._phase("completion")

    def _phase(self, name: str) -> float | None:
        value = getattr(self.time_info, name, None)
        return None if value is None else round(value, 6)

    @once
    def network_seconds(self) -> float | None:
        """What is left of the upstream TTFT for network and edge."""
        ours, queue, prompt = self.upstream_ttft_seconds, self.queue_seconds, self.prompt_seconds
        if ours is None or queue is None or prompt is None:
            return None
        rest = round(ours - queue - prompt, 6)
        return rest if rest >= 0 else None

    @once
    def usage_source(self) -> str | None:
        """``upstream`` or ``missing``, for an exchange whose answer should have told."""
        if self.usage is not None:
            return "upstream"
        answered = self.is_chat and self.upstream_status is not None and self.upstream_status < 300
        return "missing" if answered else None

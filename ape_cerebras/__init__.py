"""A small, exact proxy in front of the Cerebras inference API.

The map, from the bottom up; a module imports only from the layers below its own:

====== ================ =========================================================================
layer  module           what it owns
====== ================ =========================================================================
0      version          the version
0      outcomes         the closed list of ways an exchange can end
0      errors           every other failure as a class, and the tree of all
0      usage            token counts and timings out of JSON; prices; cost in exact decimals
0      trace            trace and request ids, W3C trace context
0      signals          ending when the system says so: a process's signals as events
0      stamps           when bytes arrived: the kernel's stamps on the loop's clock
0      lookout          takes note of arrivals before their readers have their turn
0      request          a request's head, as it was read
0      outbox           what is on its way to a stream, held until it is worth a write
0      responses        what every response's head takes from tables: reason phrases, the date
0      grammar          the pieces of HTTP/1.1's grammar that the strict checks share
0      edges            what the kernel has to say of sockets, told once for each change
0      place            a worker's place among the processes that serve one port, their board
0      buckets          the histograms' buckets, where no setting says otherwise
0      backends         the event loops there are to run on
0      limits           how much of something there may be in a time: buckets, and their store
0      turns            who is next: slots, and fair turns for those who wait for one
0      secrecy          no core file, and no look into a process that has keys
0      instruments      metrics of a kind that prometheus_client does not have
0      steps            long work in steps, between which the event loop has its turn
0      body             a body of any size, in parts
0      pieces           large JSON in pieces, each JSON by itself
0      reservations     what the API sets aside for a request, and how little one may ask for
0      collector        what the garbage collector need not look at
0      deferred         libraries that are loaded when they are first used
0      quotes           the account's key in an answer, however it is cut
0      once             a property that is worked out once
0      occurrences      how often a byte stands in a text
1      sse              server-sent events, sans I/O
1      readiness        waiting until a socket can be read or written
1      arrivals         the receiving side of a socket: bytes, and when they arrived
1      chunked          a body in chunks, read strictly, sans I/O
1      head             the strict check of a request head
1      chat             what is read, and what may be edited, in a chat request's body
1      replies          what a Cerebras API always says: errors, models, headers
1      exposition       the text a scraper gets, of one process or of all workers
1      values           the values that settings hold, and their parsers
1      upstream_errors  the failures of the API and of the way to it
1      record           what is written down of one request while it is under way
1      limit_errors     what is refused by limits of this proxy's own
1      crossing         the header fields that cross from one connection to the other
1      listing          what the API's public list says of its models, beside our prices
1      quota            the account's quota as the API tells of it
1      json_steps       large JSON, read and written in steps
1      bodies           where a body ends, and what reads it
1      verdict          what h11 says of two heads: where a body ends, and a connection
2      exchange         that record with every value derived from it
2      response_head    the strict check of the heads upstream answers with
2      assembly         the completion object that a stream adds up to, sans I/O
2      network          byte streams over sockets, which stamp what arrives
2      questions        what a stand-in Cerebras API reads in a chat request
2      retry            whether a request is made again, and when
2      circuit          when upstream is known to be down, a state machine over a clock
2      keys_file        the file of clients' keys and what each may use
2      framing          a response's body on its way out: framed, and counted
3      settings         the table of environment variables
3      meter            what a passing response tells
3      degradation      whether the service is degraded, over a minute
3      logs             JSON lines, and the writer that never blocks the loop
3      listener         listening sockets, the accept loop
3      transport        TCP and TLS to upstream, and the stream httpcore uses
3      completions      what it answers: plain replies and streams
3      wrapped          any anyio byte stream, with its arrivals stamped
3      try_counts       what the metrics tell of tries
3      client_metrics   what each client has used, counted by its key's name
3      queueing         waiting for one's turn: slots that blocks hold
3      waste            how much of what is reserved is used, over an hour
4      config           the frozen ``Config``
4      rehearsal        what a self-check is played with: processes, a client, a load
4      simulation       its options: times, counts, faults
4      connection       one connection to upstream: a request at a time, and its answer
4      process          what a whole process has only one of: signals, standard output, exit status
4      unexpected       what is told of exceptions that nobody expected
4      pacing           holding requests back so that the account's quota is not overrun
5      compression      large request bodies, compressed for the way upstream
5      inbound          what arrives from a client, until it is read
5      shared_limits    those of all workers and replicas, kept in a Redis
5      pool             the connections upstream
5      selfcheck        whether the times recorded are true, on this machine
5      account          what the account of the stand-in API may have: buckets that refill, a queue
5      keyring          the keys that clients may present now, and what each name may use
5      model_metrics    models in the metrics: their labels, and what the list says of them
6      metrics          the Prometheus registry
6      hang_up          noticing that a client leaves while its request is being answered
6      admission        whether a chat request may go up now, waits for its turn, or is refused
6      warmth           connections made ahead of the requests, and kept ready
6      upstream         one request to the API and its response
7      health           how the service is: what /health says of it, whether it is degraded
7      downstream       the client's connection, as h11 would have it
7      models           the list of models
7      tries            a request's tries at upstream, of which its client sees the last
8      settlement       what has ended is counted and logged, several at a time
8      clients          the clients' connections that are open, how many there may be
8      answers          its answers on their way: paced, cut, garbled
8      routes           the dispatch table, the key check, the local endpoints
8      catalogue        what is known of the API's models, and asked for in the background
8      identity         what a request's headers say of itself: its ids, and when it was meant
9      relay            one chat request up, its response down
9      simulator        that stand-in API, served by our own ``downstream``
10     proxy            connections, exchanges, the one way through; draining
10     stand_in         the stand-in API as a command: its flags, its log lines
11     server           listening and serving
11     practice         the commands that need no Cerebras: simulate, selfcheck
12     __init__         this map, and the public API
12     workers          several processes on one port: started, watched, restarted, drained
13     __main__         the command line
====== ================ =========================================================================

To embed it: ``proxy = await task_group.start(serve, config)`` on asyncio or trio, or make a
``Proxy`` and give ``Proxy.handle`` any anyio byte stream.
"""

from .deferred import defer  # noqa: F401 - before any import of what it defers  # isort: skip
from .config import Config, ConfigError
from .proxy import Proxy
from .server import serve
from .version import VERSION

__all__ = ("VERSION", "Config", "ConfigError", "Proxy", "serve")

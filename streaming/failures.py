"""What can go wrong, named by whose fault it is.

Every leaf knows the HTTP status, the OpenAI error type and the code it stands for; only
`server/errors.py` makes JSON of them. Messages are for the caller: they hold no traceback,
path, token or host name.

    SmolgateError
    ├── ClientError                 the caller's fault
    │   ├── InvalidRequest      400
    │   ├── InvalidKey          401
    │   ├── Forbidden           403
    │   ├── ModelNotFound       404
    │   ├── RunNotFound         404
    │   ├── ResponseNotFound    404
    │   ├── RouteNotFound       404
    │   ├── MethodNotAllowed    405
    │   ├── BodyTooLarge        413
    │   └── UnsupportedMedia    415
    ├── Busy                    429  nothing was started: try again
    │   └── KeyLimit                 the caller's key has used up what it may
    ├── Unavailable             503  nothing was started: try again
    │   ├── Draining
    │   └── UpstreamUnavailable      it cannot be reached, or says so itself
    ├── UpstreamFailed          502  it answered, but wrongly, or broke off
    │   ├── UpstreamRefused          it answered with an error status, which is kept
    │   └── UpstreamSilent  504      it said nothing for too long
    ├── DeadlineExceeded        504
    └── AgentFailed             500  the agent's fault, or its worker's
        ├── RunStopped               somebody stopped it
        └── WorkerLost               the process or the machine that it ran on is gone
"""


class SmolgateError(Exception):
    """Base of all. `retry_after` is in seconds; `param` names the offending request field."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.retry_after = retry_after


class ClientError(SmolgateError):
    status = 400
    type = "invalid_request_error"


class InvalidRequest(ClientError):
    pass


class InvalidKey(ClientError):
    status = 401
    code = "invalid_api_key"


class Forbidden(ClientError):
    status = 403
    code = "forbidden"


class ModelNotFound(ClientError):
    status = 404
    code = "model_not_found"


class RunNotFound(ClientError):
    status = 404
    code = "run_not_found"


class ResponseNotFound(ClientError):
    """No such response, conversation or item of the caller's."""

    status = 404
    code = "not_found"


class RouteNotFound(ClientError):
    status = 404
    code = "not_found"


class MethodNotAllowed(ClientError):
    status = 405
    code = "method_not_allowed"


class BodyTooLarge(ClientError):
    status = 413
    code = "body_too_large"


class UnsupportedMedia(ClientError):
    status = 415
    code = "unsupported_media_type"


class Busy(SmolgateError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class KeyLimit(Busy):
    code = "rate_limit_exceeded"


class Unavailable(SmolgateError):
    status = 503
    code = "unavailable"


class Draining(Unavailable):
    code = "draining"


class UpstreamUnavailable(Unavailable):
    code = "upstream_unavailable"


class UpstreamFailed(SmolgateError):
    status = 502
    code = "upstream_failed"


class UpstreamRefused(UpstreamFailed):
    """The upstream's own error reply; `upstream_status` is the status it answered with."""

    code = "upstream_refused"

    def __init__(
        self, message: str, *, upstream_status: int, retry_after: float | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.upstream_status = upstream_status


class UpstreamSilent(UpstreamFailed):
    status = 504
    code = "deadline_exceeded"


class DeadlineExceeded(SmolgateError):
    status = 504
    code = "deadline_exceeded"


class AgentFailed(SmolgateError):
    type = "agent_error"
    code = "agent_failed"


class RunStopped(AgentFailed):
    code = "run_stopped"


class WorkerLost(AgentFailed):
    code = "worker_lost"

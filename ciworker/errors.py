"""Every error that crosses a room's border.

Translated once at each edge: the engine's and the store's own exceptions become one of these,
HTTP and the command line turn these into a problem document or an exit code. `TryAgain` and
`Final` say what the controller may do about it.
"""


class CiworkerError(Exception):
    """The message is one sentence that a person can act on."""


class TryAgain(CiworkerError):
    """The same call may succeed later; nothing is known to be wrong with the request."""


class Final(CiworkerError):
    """The same call will fail again."""


class EngineUnavailable(TryAgain):
    """The Docker engine did not answer, not in time, or with an error of its own."""


class EngineFailed(EngineUnavailable):
    """The Docker engine answered with an error of its own."""


class EngineRefused(Final):
    """The Docker engine understood the call and refuses it."""


class ContainerMissing(EngineRefused):
    """The engine has no such container."""


class NameTaken(EngineRefused):
    """A container of that name exists already."""


class ImageMissing(EngineRefused):
    """The engine has no such image and none could be pulled."""


class ImageInUse(EngineRefused):
    """A container or another image was made from it, or it has further names."""


class StoreUnavailable(TryAgain):
    """The database is locked, its disk is full, or it cannot be written."""


class StoreRefused(Final):
    """The database cannot be used as it is: from the future, damaged or held by another worker."""


class SourceFailed(Final):
    """What a job is to run on could not be fetched."""


class SecretsRefused(Final):
    """The file of secrets cannot be used as it is; the message names no value."""


class Invalid(Final):
    """What a caller asked for is not acceptable; the message names the mend."""


class Unknown(Final):
    """There is no such thing."""


class Expired(Final):
    """It was good until an instant that is past."""


class Conflict(Final):
    """The state of the thing forbids it."""

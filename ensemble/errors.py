"""The exceptions that Quorum raises on purpose; every message says where and what would cure it.

QuorumError
├── ConfigError          a config, an option or a template cannot be used
├── InputError           a question file or row cannot be used
├── ModelError           a model cannot be found, prepared or loaded
├── PromptError          a template and a tokenizer do not fit (letters that collide)
│   ├── TooLongError     one question does not fit the context
│   └── UnaskableError   one question cannot be asked by a template (more options than labels, no shots of its group)
├── EngineError          an engine died or answered nonsense
│   └── PoisonError      one question that engines died of
└── StoreError           the score store or the run folder cannot be written or read
"""


class QuorumError(Exception):
    """Base of all; `str()` is one line for people."""


class ConfigError(QuorumError, ValueError):
    pass


class InputError(QuorumError, ValueError):
    pass


class ModelError(QuorumError):
    pass


class PromptError(QuorumError, ValueError):
    pass


class TooLongError(PromptError):
    pass


class UnaskableError(PromptError):
    pass


class EngineError(QuorumError):
    pass


class PoisonError(EngineError):
    pass


class StoreError(QuorumError, OSError):
    pass


def by_name(name: str) -> type[QuorumError]:
    """The error of that name, else EngineError: errors lose their types on their way through Ray."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, QuorumError) else EngineError

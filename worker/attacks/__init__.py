"""Attacks of Byzantine workers, one in each file: a frozen dataclass whose fields are its settings.

>>> from varangian.worker.attacks import ATTACKS
>>> ATTACKS.build({"alie": {"z": 1.5}}, "byzantine.attack")
Alie(z=1.5, objective='deviation')

A `GradientAttack` changes the vector that is sent; a `RememberingAttack` also looks at what it saw in
earlier rounds; a `DataAttack` changes the batch that the vector is computed from; a `ProtocolAttack` sends
a vector, honest or of another attack, otherwise than the protocol says. What an attacker sees is explicit
(`Knowledge`). The configuration and the rooms of the worker above it import it.
"""

from varangian.worker.attacks.agr_tailored import AgrTailored
from varangian.worker.attacks.alie import Alie, z_max
from varangian.worker.attacks.backdoor import Backdoor
from varangian.worker.attacks.base import (
    ATTACKS,
    SIGHTS,
    Attack,
    AttackError,
    Conditional,
    DataAttack,
    GradientAttack,
    Knowledge,
    RememberingAttack,
    Sight,
    Timed,
    VectorAttack,
    inner_attack,
    is_joint,
    on_vectors,
    remembers,
    sight_of,
    why_impossible,
)
from varangian.worker.attacks.churn import Churn
from varangian.worker.attacks.composite import Composite
from varangian.worker.attacks.coordinate_drop import CoordinateDrop
from varangian.worker.attacks.copy import Copy
from varangian.worker.attacks.equivocate import Equivocate
from varangian.worker.attacks.extreme_scale import ExtremeScale
from varangian.worker.attacks.flag_collusion import FlagCollusion
from varangian.worker.attacks.gaussian import Gaussian
from varangian.worker.attacks.ipm import Ipm
from varangian.worker.attacks.label_flip import LabelFlip
from varangian.worker.attacks.live_rule import Effect, LiveRule, Probe
from varangian.worker.attacks.memory import Unpackable, packed, unpacked
from varangian.worker.attacks.mimic import Mimic
from varangian.worker.attacks.min_max import MinMax
from varangian.worker.attacks.min_sum import MinSum
from varangian.worker.attacks.mounted import TOGETHER, MountedAttack, poison
from varangian.worker.attacks.non_finite import NonFinite
from varangian.worker.attacks.on_protocol import Answer, Line, ProtocolAttack, Push
from varangian.worker.attacks.one_block import OneBlock
from varangian.worker.attacks.replay import Replay
from varangian.worker.attacks.resend import Resend
from varangian.worker.attacks.rop import Rop
from varangian.worker.attacks.sign_flip import SignFlip
from varangian.worker.attacks.silence import Silence
from varangian.worker.attacks.size_lie import SizeLie
from varangian.worker.attacks.sleeper import Sleeper
from varangian.worker.attacks.slow_drip import SlowDrip
from varangian.worker.attacks.sparse import Sparse
from varangian.worker.attacks.stale import Stale
from varangian.worker.attacks.stale_push import StalePush
from varangian.worker.attacks.stat_opt import StatOpt
from varangian.worker.attacks.stored_row import StoredRow
from varangian.worker.attacks.subnormal import Subnormal
from varangian.worker.attacks.uniform import Uniform
from varangian.worker.attacks.wrong_shape import WrongShape
from varangian.worker.attacks.xfed import Xfed

__all__ = [
    "ATTACKS",
    "SIGHTS",
    "TOGETHER",
    "AgrTailored",
    "Alie",
    "Answer",
    "Attack",
    "AttackError",
    "Backdoor",
    "Churn",
    "Composite",
    "Conditional",
    "CoordinateDrop",
    "Copy",
    "DataAttack",
    "Effect",
    "Equivocate",
    "ExtremeScale",
    "FlagCollusion",
    "Gaussian",
    "GradientAttack",
    "Ipm",
    "Knowledge",
    "LabelFlip",
    "Line",
    "LiveRule",
    "Mimic",
    "MinMax",
    "MinSum",
    "MountedAttack",
    "NonFinite",
    "OneBlock",
    "Probe",
    "ProtocolAttack",
    "Push",
    "RememberingAttack",
    "Replay",
    "Resend",
    "Rop",
    "Sight",
    "SignFlip",
    "Silence",
    "SizeLie",
    "Sleeper",
    "SlowDrip",
    "Sparse",
    "Stale",
    "StalePush",
    "StatOpt",
    "StoredRow",
    "Subnormal",
    "Timed",
    "Uniform",
    "Unpackable",
    "VectorAttack",
    "WrongShape",
    "Xfed",
    "inner_attack",
    "is_joint",
    "on_vectors",
    "packed",
    "poison",
    "remembers",
    "sight_of",
    "unpacked",
    "why_impossible",
    "z_max",
]

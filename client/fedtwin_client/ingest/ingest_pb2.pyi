from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(_message.Message):
    __slots__ = ("code", "unit")
    CODE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    code: str
    unit: str
    def __init__(self, code: _Optional[str] = ..., unit: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("number", "base_time", "first_sequence", "patients", "kinds", "time", "value", "patient", "kind", "quality")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BASE_TIME_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PATIENTS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PATIENT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    number: int
    base_time: int
    first_sequence: int
    patients: _containers.RepeatedScalarFieldContainer[str]
    kinds: _containers.RepeatedCompositeFieldContainer[Kind]
    time: _containers.RepeatedScalarFieldContainer[int]
    value: _containers.RepeatedScalarFieldContainer[float]
    patient: _containers.RepeatedScalarFieldContainer[int]
    kind: _containers.RepeatedScalarFieldContainer[int]
    quality: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, number: _Optional[int] = ..., base_time: _Optional[int] = ..., first_sequence: _Optional[int] = ..., patients: _Optional[_Iterable[str]] = ..., kinds: _Optional[_Iterable[_Union[Kind, _Mapping]]] = ..., time: _Optional[_Iterable[int]] = ..., value: _Optional[_Iterable[float]] = ..., patient: _Optional[_Iterable[int]] = ..., kind: _Optional[_Iterable[int]] = ..., quality: _Optional[_Iterable[int]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("number", "accepted", "set_aside", "refused", "duplicate")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    number: int
    accepted: int
    set_aside: int
    refused: str
    duplicate: int
    def __init__(self, number: _Optional[int] = ..., accepted: _Optional[int] = ..., set_aside: _Optional[int] = ..., refused: _Optional[str] = ..., duplicate: _Optional[int] = ...) -> None: ...

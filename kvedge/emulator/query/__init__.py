"""IoT Hub's query language: text to tree (`parsing`), tree to functions (`evaluating`).

https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-query-language
"""

from kvedge.emulator.query.evaluating import UNDEFINED, Evaluation, holds
from kvedge.emulator.query.parsing import (
    Query,
    QueryError,
    parse_condition,
    parse_query,
    places,
)

__all__ = [
    "UNDEFINED",
    "Evaluation",
    "Query",
    "QueryError",
    "holds",
    "parse_condition",
    "parse_query",
    "places",
]

"""Tools for tests of flows: a conformance kit for anyone's layers, and the memory of a call."""

from cflow.testing.demands import Demands
from cflow.testing.flows import check_flow
from cflow.testing.memory import peak_bytes
from cflow.testing.report import Finding, Report
from cflow.testing.transports import check_transport

__all__ = ["Demands", "Finding", "Report", "check_flow", "check_transport", "peak_bytes"]

"""Networks to and from NIR, the graph format that simulators and neuromorphic hardware share.

NIR describes neurons in continuous time and says nothing of time steps; whether a spike sets the
membrane or is subtracted from it depends on who reads (NIR 1.0.4 documents the one, 1.0.8 has a
``v_reset`` for the other). So both are arguments here.
"""

from snnkern.interop.nir.graph import Graph, Scale
from snnkern.interop.nir.nodes import HAS_V_RESET, Convention
from snnkern.interop.nir.reader import from_nir
from snnkern.interop.nir.writer import to_nir

__all__ = ["HAS_V_RESET", "Convention", "Graph", "Scale", "from_nir", "to_nir"]

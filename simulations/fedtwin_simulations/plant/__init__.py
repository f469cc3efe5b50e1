"""The plant: vectorised virtual patients whose physiology, risk and counterfactuals are known exactly.

Design note: independent of any digital twin, on purpose: other equations, other parameters, from published papers.
Glucose after Dalla Man 2007, circulation from elastances (Burkhoff, Tyberg 1993) under a baroreflex (Zenker 2007), gas
exchange from the alveolar gas and shunt equations with the dissociation curve of Severinghaus 1979.
Constants marked "assumed" are round clinical numbers of our own. Nobody in here exists.
"""

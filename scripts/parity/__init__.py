"""Parity with the published BlendMask: the rule of the weights, the fixtures, the stages that are compared."""

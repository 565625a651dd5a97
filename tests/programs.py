"""What tests ask of a program before it is compiled."""

import jax.extend


def products(jaxpr) -> set[str]:
    """The types of all operands of matrix products in a program, and in those that it calls."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found |= {str(operand.aval.dtype) for operand in equation.invars}
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found |= products(inner)
    return found

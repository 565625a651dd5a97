"""An update of the weights, its batches, the optimisers, and the loop around it."""

"""A house's own model: from the entities of Home Assistant to rows, a training and calls of its tools."""

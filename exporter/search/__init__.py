"""Choose the form of every site under a budget of drift, by what was measured."""

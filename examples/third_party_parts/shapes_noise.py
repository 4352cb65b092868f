"""A noise model from outside: a label flips to the class half-way round the list, of 10 classes 1 to 6."""

from shards.noise import Flips, exact_count, refuse_model_file


class Opposite:
    """Exactly round(r N) flips; which samples, the keyed hash of their keys decides."""

    kind = "class"
    nested = True
    own_ratio = False

    def __init__(self, model_file=None):
        refuse_model_file("opposite", model_file)

    def plan(self, population, ratios, seed):
        # One order for all ratios: a lower level's flips are the first of a higher level's.
        order = population.order(seed, "select")
        classes = population.num_classes
        opposite = (population.labels + max(classes // 2, 1)) % classes
        counts = [exact_count(ratio, len(population)) for ratio in ratios]
        return [Flips(order[:count], opposite[order[:count]]) for count in counts]

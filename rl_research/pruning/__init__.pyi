from .places import prune_place as prune_place
from .plan import Pruned as Pruned, Removal as Removal, Rules as Rules

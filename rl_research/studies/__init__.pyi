from .study import Study as Study, plan as plan

from .comparison import study_result as study_result
from .plan import Study as Study, plan_study as plan_study, study_name as study_name
from .processes import run_members as run_members

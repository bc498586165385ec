from .model_card import card as card
from .page import summary_markdown as summary_markdown, write_report as write_report
from .study_page import study_markdown as study_markdown, write_study as write_study

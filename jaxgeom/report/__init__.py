"""Tables, figures and the page, written from the JSON that a comparison, a trajectory or a study left behind."""

from .console import print_table as print_table
from .findings_compare import findings as findings
from .findings_compare import trajectory_findings as trajectory_findings
from .findings_study import study_findings as study_findings
from .learned import nothing_learned as nothing_learned
from .page import write_report as write_report

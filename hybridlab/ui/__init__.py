"""Forms, tables, pictures and progress for runbooks. The same calls work in JupyterLab and unattended."""

from hybridlab.ui.figures import figure
from hybridlab.ui.forms import form
from hybridlab.ui.live import gate, progress, show
from hybridlab.ui.seen import view_comparison, view_fit, view_scores

__all__ = ["figure", "form", "gate", "progress", "show", "view_comparison", "view_fit", "view_scores"]

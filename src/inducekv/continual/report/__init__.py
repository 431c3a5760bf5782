"""Results as pages: the demo's (demo.py) and the bench's (bench.py)."""

from inducekv.continual.report.demo import results_object as results_object
from inducekv.continual.report.demo import write_report as write_report

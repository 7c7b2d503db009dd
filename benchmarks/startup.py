"""How long `gradvar --help` takes as a whole process; the goal is under half a second.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time

times = []
for _ in range(11):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gradvar", "--help"], check=True, stdout=subprocess.DEVNULL)
    times.append(time.perf_counter() - start)
print(f"gradvar --help: median {statistics.median(times):.3f} s, range {min(times):.3f} to {max(times):.3f} s")

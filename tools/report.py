#!/usr/bin/env python3
"""Write a page about evaluations: scores, classes, confusions, and images of several runs side by side.

python tools/report.py --runs output/eval --output output/eval/report.html
python tools/report.py --runs output/one_stage output/two_stage --names "one stage" "two stage" --output report.html
"""

from openworldsam.report.command import main

if __name__ == "__main__":
    main()

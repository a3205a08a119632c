# Judges a finished report. usage: verdict.py REPORT_DIR
# Strict: a case passes only if both what happened (`behavior`) and how the connection ended (`behaviorClose`) are
# OK or INFORMATIONAL; NON-STRICT, UNCLEAN, WRONG CODE, FAILED and anything new all fail. A case that never ran fails too.
import json
import os
import sys

EXPECTED_CASES = 301
GOOD = ("OK", "INFORMATIONAL")


def judge(directory):
    try:
        with open(os.path.join(directory, "index.json")) as index:
            (cases,) = json.load(index).values()
    except (IOError, OSError, ValueError) as why:
        print("no usable report: %s" % why)
        cases = {}

    failed = [name for name in cases if not all(cases[name][k] in GOOD for k in ("behavior", "behaviorClose"))]
    for name in sorted(failed, key=lambda n: [int(part) for part in n.split(".")]):
        case = cases[name]
        print("case %s: behavior %s, close %s" % (name, case["behavior"], case["behaviorClose"]))
        with open(os.path.join(directory, case["reportfile"])) as report:
            detail = json.load(report)
        for key in ("description", "expectation", "result", "resultClose"):
            text = " ".join(detail[key].split())
            print(("    %s: %s" % (key, text[:300])).encode("ascii", "backslashreplace").decode("ascii"))

    missing = EXPECTED_CASES - len(cases)
    if missing:
        print("%d cases ran, %d were expected" % (len(cases), EXPECTED_CASES))
    print("%d passed, %d failed" % (len(cases) - len(failed), len(failed) + abs(missing)))
    return not failed and not missing


sys.exit(0 if judge(sys.argv[1]) else 1)

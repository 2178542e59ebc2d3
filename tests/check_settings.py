"infoutil/data_files/settings.csv is what methods declare of their settings; `--write` writes it, otherwise the two are compared"
import csv, io, sys
from pathlib import Path
from infoutil.command_line import settings_table

file = Path(__file__).parents[1]/'infoutil/data_files/settings.csv'
text = io.StringIO()
csv.writer(text, lineterminator='\n').writerows(settings_table())
if '--write' in sys.argv: file.write_text(text.getvalue(), encoding='utf-8')
elif file.read_text(encoding='utf-8')!=text.getvalue(): sys.exit(f'{file} differs from the settings of the methods; run `make export` and commit')
print('settings.csv and the settings of the methods agree')

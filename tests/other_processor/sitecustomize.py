"Python imports this at its start where the folder is on PYTHONPATH: torch gets the other processor as soon as somebody imports it, and not before"
import importlib.abc, sys

class AfterTorch(importlib.abc.MetaPathFinder):
    "Lets the import of torch take its way, and changes what came of it"
    def find_spec(self, name, path=None, target=None):
        if name!='torch': return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec
        spec = find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            if 'other_processor' in sys.modules: return            # it is what imports torch, for somebody who will install it
            import other_processor
            other_processor.install()
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, AfterTorch())

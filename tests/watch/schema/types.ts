// What a dashboard's JSON must be, from Grafana Labs' own types.

import type * as g from '@grafana/schema';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as states from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as curves from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// The types after JSON: string enumerations are their texts.
export type Json<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends (infer U)[]
      ? Json<U>[]
      : T extends object
        ? { [K in keyof T]: Json<T[K]> }
        : T;

// The package has no type for a Prometheus query; these are the fields that ours have.
interface PrometheusQuery {
  refId: string;
  datasource: g.DataSourceRef;
  expr: string;
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  legendFormat?: string;
  range?: boolean;
}

// Fields that Grafana's Prometheus source reads from an annotation, and that the package leaves out.
interface Mark extends Omit<g.AnnotationQuery, 'target'> {
  step?: string;
  tagKeys?: string;
  target: PrometheusQuery;
  textFormat?: string;
  titleFormat?: string;
  useValueForTime?: boolean;
}

interface Plugins {
  stat: [stat.Options, Record<string, never>];
  'state-timeline': [states.Options, states.FieldConfig];
  table: [table.Options, table.FieldConfig];
  timeseries: [curves.Options, curves.FieldConfig];
}

export type Kind = keyof Plugins;
export type Frame = Json<
  Omit<g.Dashboard, 'annotations' | 'panels'> & { annotations: { list: Mark[] } }
>;
export type Row = Json<g.RowPanel>;
export type Query = Json<PrometheusQuery>;
export type Panel<K extends Kind> = Json<Omit<g.Panel, 'fieldConfig' | 'options' | 'targets' | 'type'>> & {
  type: K;
};
export type Options<K extends Kind> = Json<Partial<Plugins[K][0]>>;
export type Defaults = Json<Omit<g.FieldConfig, 'custom'>>;
export type Custom<K extends Kind> = Json<Partial<Plugins[K][1]>>;
export type Matcher = Json<g.MatcherConfig>;
export type Override<K extends Kind> = Partial<Defaults> & {
  [N in keyof Custom<K> as `custom.${N & string}`]?: Custom<K>[N];
};
